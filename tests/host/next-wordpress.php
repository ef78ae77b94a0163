<?php
// What this WordPress would generate next, each under its name, as JSON. Run by php-fpm and by the command line.
$_SERVER += ['HTTP_HOST' => INSTANCE['host'], 'REQUEST_URI' => '/', 'REQUEST_METHOD' => 'GET', 'SERVER_PROTOCOL' => 'HTTP/1.1'];
// First of all, before WordPress draws from them.
$next = require 'next-common.php';
require '/usr/share/wordpress/wp-load.php';

$admin = get_userdata(1);
wp_set_current_user(1);
$cookie = wp_generate_auth_cookie(1, 2000000000, 'logged_in', 'a token');
$next += [
    'wp_rand' => wp_rand(),
    'wp_generate_password' => wp_generate_password(24),
    'wp_generate_uuid4' => wp_generate_uuid4(),
    'wp_hash_password' => wp_hash_password('a password'),
    'get_password_reset_key' => get_password_reset_key($admin),
    'application password' => WP_Application_Passwords::create_new_application_password(1, ['name' => uniqid()])[0],
    'session token' => WP_Session_Tokens::get_instance(1)->create(2000000000),
];
// Nothing random in it, but the clone's keys: the same at each call.
$keys = ['wp_create_nonce' => wp_create_nonce('an action'), 'auth cookie' => $cookie, 'wp_hash' => wp_hash('a text')];
foreach (['AUTH', 'SECURE_AUTH', 'LOGGED_IN', 'NONCE'] as $use) {
    $keys += ["{$use}_KEY" => constant("{$use}_KEY"), "{$use}_SALT" => constant("{$use}_SALT")];
}
header('Content-Type: application/json');
echo json_encode(['next' => $next, 'keys' => $keys]);
