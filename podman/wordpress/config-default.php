<?php
// What all clones of this golden have in common. The one file that differs is /etc/golden/instance.ini; it is read at
// every request and no opcode cache holds it.

$instance = parse_ini_file('/etc/golden/instance.ini');

define('WP_HOME', $instance['url']);
define('WP_SITEURL', $instance['url']);

// Eight independent keys from one secret.
foreach (['AUTH', 'SECURE_AUTH', 'LOGGED_IN', 'NONCE'] as $use) {
    define("{$use}_KEY", hash_hmac('sha256', "{$use}_KEY", $instance['secret']));
    define("{$use}_SALT", hash_hmac('sha256', "{$use}_SALT", $instance['secret']));
}
unset($instance, $use);

// MariaDB knows the system user that connects through its socket: there is no password.
define('DB_NAME', 'wordpress');
define('DB_USER', 'www-data');
define('DB_PASSWORD', '');
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
