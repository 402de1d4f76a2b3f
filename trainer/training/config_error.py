"""What is said about a wrong command line or recipe: one line that names the option, and exit code 2."""


class ConfigError(ValueError):
    """The command line or a recipe asks for something that can't be; the message says what."""
