<?php
// WordPress's part of one-click login: signs the administrator in as wp-login.php does.

require '/golden/one-click.php';
one_click_check('/wp-login.php');
$module = one_click_module();
require '/usr/share/wordpress/wp-load.php';

$admin = get_userdata(1);
if (!$admin || !$admin->has_cap('manage_options')) {
    one_click_refuse('/wp-login.php');
}
wp_set_auth_cookie($admin->ID);
do_action('wp_login', $admin->user_login, $admin);
// The list of plugins, with that one alone: not every plugin has a page of its own.
one_click_go($module === null ? '/wp-admin/' : '/wp-admin/plugins.php?s=' . rawurlencode($module));
