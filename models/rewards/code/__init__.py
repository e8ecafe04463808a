"""Python as a reward: functions and tests that run in processes of their own, under limits."""
