"""Language models that are asked: yes or no, a grade, sampled verdicts."""
