"""`python -m homojl_cli`, which launchers such as torchrun need."""

from homojl_cli.main import main

main()
