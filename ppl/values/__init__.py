"""What a value is: a number or none, read-only, pictured, reached from code, named the same in every process."""
