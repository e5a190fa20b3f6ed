"""How the bases of the embedded lab were made, whose weights labkit ships; `labkit base` makes them anew."""
