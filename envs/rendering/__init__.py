"""Pictures of what an environment's last step did, for `render_mode='rgb_array'`."""
