"""What a person looks at: parity, tables, one HTML file. All of it is drawn from plain data."""
