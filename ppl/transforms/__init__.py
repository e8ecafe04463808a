"""What is made of whole programs and models: handled, guided, simulated, several steps as one."""
