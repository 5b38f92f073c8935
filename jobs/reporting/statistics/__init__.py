"""The statistics behind the report: means, differences, ranks, power and their wording."""
