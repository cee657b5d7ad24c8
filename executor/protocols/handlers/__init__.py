"""What the operations of the worker protocol do, by what they are about."""
