"""Suites: many runs that answer one question, kept in one file that an interrupted suite goes on with."""
