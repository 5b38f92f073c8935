"""Many pictures: which, by which process, and what is written of them."""
