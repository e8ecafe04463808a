"""Many problems on many workers: chunks of them run apart, and each posterior is what one process would have found."""
