"""What has not run as it is meant to run yet; each module says what has been tried and what not."""
