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

// WordPress keeps its global styles for a minute, so each clone would work them out, and write them down, on its first page.
// The golden's have no end (quiesce) until somebody logs in, who may change them: then it is a minute again.
add_action('set_current_user', function () {
    if (!get_current_user_id()) {
        return;
    }
    foreach (['global_styles', 'global_styles_svg_filters'] as $kind) {
        $name = "{$kind}_" . get_stylesheet();
        // Those with an end are not loaded with all others.
        if (isset(wp_load_alloptions()["_transient_$name"])) {
            delete_transient($name);
        }
    }
});
