<?php
// What PHP and MariaDB would generate next. Included by the scripts beside it, whatever the shop.
$database = new mysqli('localhost', 'www-data', '', getenv('DATABASE') ?: null);
$of_database = $database->query('SELECT RAND() `RAND()`, UUID() `UUID()`, HEX(RANDOM_BYTES(16)) `RANDOM_BYTES()`')->fetch_assoc();
$database->close();
session_start();
$file = tempnam('/tmp', '');
unlink($file);
return [
    'session_id' => session_id(),
    'session_create_id' => session_create_id(),
    'mt_rand' => mt_rand(),
    'rand' => rand(),
    'random_int' => random_int(0, PHP_INT_MAX),
    'random_bytes' => bin2hex(random_bytes(16)),
    'openssl_random_pseudo_bytes' => bin2hex(openssl_random_pseudo_bytes(16)),
    'lcg_value' => lcg_value(),
    'uniqid' => uniqid('', true),
    'str_shuffle' => str_shuffle('abcdefghijklmnopqrstuvwxyz0123456789'),
    'password_hash' => password_hash('a password', PASSWORD_BCRYPT, ['cost' => 4]),
    'tempnam' => $file,
] + $of_database;
