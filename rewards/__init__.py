"""Built-in rewards, one file each: the file's name is the reward's name."""

if __name__ == "rewards":
    raise ImportError(
        "this folder is the package `diffalign_rewards`: install diffalign (pip install -e .), import that. "
        "`rewards` resolves here only because the current folder is the repository."
    )
