<?php
// What all clones of this golden have in common. INSTANCE and instance_key() are the clone's own (common/instance.php).

define('WP_HOME', INSTANCE['url']);
define('WP_SITEURL', INSTANCE['url']);

foreach (['AUTH', 'SECURE_AUTH', 'LOGGED_IN', 'NONCE'] as $use) {
    define("{$use}_KEY", instance_key("{$use}_KEY"));
    define("{$use}_SALT", instance_key("{$use}_SALT"));
}
unset($use);

// MariaDB beside the shop knows the system user that connects through its socket: there is no password then.
define('DB_NAME', INSTANCE['database']);
define('DB_USER', INSTANCE['database_user']);
define('DB_PASSWORD', INSTANCE['database_password']);
define('DB_HOST', 'localhost');
define('DB_CHARSET', 'utf8mb4');

define('DONT_SET_WP_CONTENT_DIR', true);
define('WP_ALLOW_MULTISITE', false);
define('FS_METHOD', 'direct');
define('WP_POST_REVISIONS', 5);

// A demo talks to nobody: see also mu-plugins/demo.php.
define('WP_HTTP_BLOCK_EXTERNAL', true);
define('DISABLE_WP_CRON', true);
define('AUTOMATIC_UPDATER_DISABLED', true);
