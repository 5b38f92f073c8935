"""Labels: which values of a mask mean which class, and the faults that masks and class tables have."""
