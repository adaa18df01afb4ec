"""The commands of `wcl`, one module for each subject; `wcl_client.cli` joins them."""
