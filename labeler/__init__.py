"""What people see, and what they said: the store, its rules, and the pages over it."""
