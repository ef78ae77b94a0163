<?php
// Run once by php-fpm's master, before it forks a worker (opcache.preload): every worker inherits what it would else work
// out anew for its first page. Two fifths of the processor time that a first page took beyond a later one (21 of 54 ms)
// went into these two. Nothing random and nothing of one shop belongs here, for all clones share it.

// ICU's rules for turning names into addresses (PrestaShop's StringModifier).
if (class_exists('Transliterator')) {
    Transliterator::create('Any-Latin; Latin-ASCII');
}

// The patterns by which PrestaShop tells a telephone: a desktop's browser is held against all of them.
$detect = '/var/www/prestashop/vendor/mobiledetect/mobiledetectlib/Mobile_Detect.php';
if (is_file($detect)) {
    require_once $detect;
    $visitor = new Mobile_Detect(['HTTP_USER_AGENT' => 'Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0']);
    $visitor->isMobile();
    $visitor->isTablet();
    unset($visitor);
}
unset($detect);

// Where the links in a path lead, part by part, as the front pages ask (set-up): else a worker's first page looks at 900 parts.
foreach (@file('/golden/paths', FILE_IGNORE_NEW_LINES) ?: [] as $path) {
    realpath($path);
}
unset($path);
