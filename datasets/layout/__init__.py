"""Which files of a dataset's folders are images and which are their masks."""
