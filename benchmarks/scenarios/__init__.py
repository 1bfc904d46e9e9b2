"""The scenarios: each measures, and adds rows with a floor and a bar to the results."""
