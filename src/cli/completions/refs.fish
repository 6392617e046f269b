# Names of cached bundles, where a command takes one.
complete -c musherfs -n '__fish_seen_subcommand_from @COMMANDS@' -f -a '(musherfs __complete refs (commandline -ct) 2>/dev/null)'
