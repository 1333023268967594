"""`python -m tmac_llm`: the command line. Knows nothing of its verbs."""

from tmac_llm.cli import main

if __name__ == "__main__":
    main()
