"""Names of the environment variables that the launcher, the agent and the ranks share."""

LAUNCHER_PID = 'RECIPE_LAUNCHER_PID'  # the agent ends with it
AGENT_PID = 'RECIPE_AGENT_PID'  # the ranks end with it
HANG_TIMEOUT_S = 'RECIPE_HANG_TIMEOUT_S'  # 0 or not set: no watchdog
SOCKETS = 'RECIPE_SOCKETS'  # folder in which the processes of a rank make their sockets
RESTART_PATIENCE_S = 'RECIPE_RESTART_PATIENCE_S'  # how long a second attempt waits for the other machines
