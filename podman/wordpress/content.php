<?php
// Creates the site with some content, through WordPress's own functions. Runs as the web server's user.

define('WP_INSTALLING', true);
$_SERVER += ['HTTP_HOST' => 'golden.invalid', 'REQUEST_URI' => '/', 'REQUEST_METHOD' => 'GET', 'SERVER_PROTOCOL' => 'HTTP/1.1'];
require '/usr/share/wordpress/wp-load.php';
require_once ABSPATH . 'wp-admin/includes/upgrade.php';
require_once ABSPATH . 'wp-admin/includes/image.php';

// No look at the site through its own address: nginx is not running yet.
add_filter('pre_option_permalink_structure', fn () => '/%postname%/');
wp_install('Demo shop', 'admin', 'admin@golden.invalid', false, '', getenv('ADMIN_PASSWORD'));
remove_all_filters('pre_option_permalink_structure');

update_option('blogdescription', 'Good things for your kitchen and desk');
update_option('timezone_string', 'Europe/Berlin');
update_option('date_format', 'j F Y');
update_option('posts_per_page', 6);
update_option('default_pingback_flag', '');
update_option('default_ping_status', 'closed');
switch_theme('twentytwentythree');
foreach ([1, 2, 3] as $sample) {
    wp_delete_post($sample, true);
}
delete_option('wp_page_for_privacy_policy');

/** A picture for a post: a soft gradient with a few discs, made here so that nothing has to be shipped. */
function picture(string $name, array $from, array $to): int
{
    [$width, $height] = [1200, 800];
    $image = imagecreatetruecolor($width, $height);
    for ($y = 0; $y < $height; $y++) {
        $mix = fn (int $i): int => (int) ($from[$i] + ($to[$i] - $from[$i]) * $y / $height);
        imageline($image, 0, $y, $width, $y, imagecolorallocate($image, $mix(0), $mix(1), $mix(2)));
    }
    mt_srand(crc32($name));
    for ($i = 0; $i < 9; $i++) {
        $size = mt_rand(120, 520);
        $light = imagecolorallocatealpha($image, 255, 255, 255, mt_rand(95, 118));
        imagefilledellipse($image, mt_rand(0, $width), mt_rand(0, $height), $size, $size, $light);
    }
    $upload = wp_upload_dir();
    $file = "{$upload['path']}/$name.jpg";
    imagejpeg($image, $file, 82);
    $id = wp_insert_attachment(['post_title' => $name, 'post_mime_type' => 'image/jpeg', 'post_status' => 'inherit'], $file);
    wp_update_attachment_metadata($id, wp_generate_attachment_metadata($id, $file));
    return $id;
}

function paragraphs(string ...$texts): string
{
    return implode("\n\n", array_map(fn ($text) => "<!-- wp:paragraph -->\n<p>$text</p>\n<!-- /wp:paragraph -->", $texts));
}

$categories = [];
foreach (['Kitchen', 'Desk', 'Living'] as $name) {
    $categories[$name] = wp_create_category($name);
}

$posts = [
    ['A mug that keeps its promise', 'Kitchen', ['#mug', [214, 120, 84], [94, 48, 60]],
        'Thrown by hand, glazed twice and fired for eleven hours: this mug holds a third of a litre and stays warm longer than your patience for meetings.',
        'It comes in terracotta, ink blue and chalk. Each one differs a little, which is the point.'],
    ['Linen towels, softer every wash', 'Kitchen', ['#towel', [186, 200, 170], [72, 98, 84]],
        'Stonewashed European linen dries glasses without a trace and hands without a complaint.',
        'Sold in sets of two. They shrink by three per cent at the first wash; we have already counted that in.'],
    ['Notebooks for people who still cross things out', 'Desk', ['#notebook', [84, 120, 180], [28, 40, 84]],
        'One hundred and sixty pages of thread-sewn paper that lies flat from the first page to the last.',
        'Dots, lines or nothing at all. The cover takes ten years of pockets.'],
    ['The lamp with the quiet switch', 'Living', ['#lamp', [244, 208, 120], [150, 84, 40]],
        'A warm light, a heavy foot and a switch that does not wake anyone.',
        'Every part can be replaced with a screwdriver, and we keep all of them in stock.'],
    ['A bowl for the good fruit', 'Kitchen', ['#bowl', [220, 170, 190], [110, 60, 110]],
        'Turned from one piece of ash, oiled, and wide enough for a week of apples.',
        'Wipe it, oil it once a year, and leave it to your children.'],
    ['How we pack', 'Living', ['#parcel', [200, 178, 150], [104, 82, 62]],
        'Paper, straw and a handwritten note. No plastic, no air cushions, no box inside a box.',
        'Orders placed before noon leave the same day.'],
];
foreach ($posts as $i => [$title, $category, [$name, $from, $to], $first, $second]) {
    $id = wp_insert_post([
        'post_title' => $title, 'post_status' => 'publish', 'post_author' => 1, 'post_category' => [$categories[$category]],
        'post_date' => gmdate('Y-m-d H:i:s', strtotime("2024-05-20 09:00 -$i days")),
        'post_excerpt' => $first, 'post_content' => paragraphs($first, $second),
    ]);
    set_post_thumbnail($id, picture(ltrim($name, '#'), $from, $to));
}
wp_insert_comment([
    'comment_post_ID' => $id, 'comment_author' => 'Mara', 'comment_author_email' => 'mara@golden.invalid',
    'comment_content' => 'Arrived in one piece, and the note made my day.', 'comment_approved' => 1,
]);

foreach (['About us' => 'We are a small demo shop. Everything here is made up, and you may change all of it: this site is yours for a while.',
    'Shipping and returns' => 'We ship nothing, quickly and free of charge. Returns are just as easy.',
    'Contact' => 'Write to us at the address below; the mail will not go anywhere, for this is a demo.'] as $title => $text) {
    wp_insert_post(['post_title' => $title, 'post_type' => 'page', 'post_status' => 'publish', 'post_author' => 1, 'post_content' => paragraphs($text)]);
}

// The theme's front page has a made-up headline; an edited copy of its template, as the site editor would save it.
$home = str_replace('Mindblown: a blog about philosophy.', 'Good things for your kitchen and desk', file_get_contents(get_theme_file_path('templates/home.html')));
$template = wp_insert_post(['post_type' => 'wp_template', 'post_name' => 'home', 'post_title' => 'Home', 'post_status' => 'publish', 'post_content' => wp_slash($home)]);
wp_set_object_terms($template, get_stylesheet(), 'wp_theme');

$GLOBALS['wp_rewrite']->init();
$GLOBALS['wp_rewrite']->set_permalink_structure('/%postname%/');
flush_rewrite_rules(false);
update_user_meta(1, 'show_welcome_panel', 0);
echo 'posts: ', wp_count_posts()->publish, ', pages: ', wp_count_posts('page')->publish, "\n";
