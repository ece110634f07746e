"""Pictures that are classified after their row is committed."""
