<?php
// Run once by php-fpm's master, before it forks a worker (opcache.preload): every worker inherits what it would else find out
// anew for its first page, where the links in a path lead: 500 parts of paths. Nothing of one site belongs here.

$roots = ['/usr/share/wordpress/wp-includes', '/usr/share/wordpress/wp-content/themes', '/usr/share/wordpress/wp-content/mu-plugins'];
foreach ($roots as $root) {
    $files = new RecursiveIteratorIterator(new RecursiveDirectoryIterator($root, FilesystemIterator::SKIP_DOTS));
    foreach ($files as $path => $file) {
        if (preg_match('/\.(?:php|json|html|min\.css)$/', $path)) {
            realpath($path);
        }
    }
}
foreach (glob('/usr/share/wordpress/*.php') as $path) {
    realpath($path);
}
realpath('/etc/wordpress/config-default.php');
unset($roots, $root, $files, $path, $file);
