"""What can be typed; no flow imports it. Reading order: __main__, line, app, jobs, watching, setting_up, options, asked, along, made; running, follow, records, status,
planning, overview, first_prices, ps, logs, stop, runs, fetching, keeping, here, messages; server, own_server, place, homes, daemon, api, at_work, stopping, worker;
deploy, automations, connect, found_here,
addresses.
"""
