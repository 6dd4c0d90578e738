"""Job rows and the verbs that change them. Knows neither workers, runners nor pages."""
