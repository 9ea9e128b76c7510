"""The configuration: sections, a method's settings, files, and how they become one."""
