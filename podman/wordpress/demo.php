<?php
/**
 * Plugin Name: Demo
 * Description: Keeps a throw-away site to itself: no mail, no requests to other hosts, no update checks.
 */

// Mail "succeeds" and goes nowhere, so that the forms of a demo still work.
add_filter('pre_wp_mail', '__return_true');

// Without a way out each request would only wait for its time limit.
add_filter('pre_http_request', function () {
    return new WP_Error('demo', 'This demo site makes no outgoing requests.');
});

foreach (['core', 'plugins', 'themes'] as $kind) {
    add_filter("pre_site_transient_update_$kind", function () {
        return (object) ['last_checked' => time(), 'updates' => [], 'response' => [], 'version_checked' => get_bloginfo('version')];
    });
}

// Asked for by the settings page.
add_filter('translations_api', function () {
    return ['translations' => []];
});

// The reminder to confirm the administrator's address would greet every visitor.
add_filter('admin_email_check_interval', '__return_zero');
