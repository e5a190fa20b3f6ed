"""What is asked (moments) and what is seen (frames of videos by true seconds)."""
