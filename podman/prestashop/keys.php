<?php
// PrestaShop's secrets, all derived from the clone's one (auto_prepend_file, with common/instance.php). The names are
// those of app/config/parameters.php.

require '/golden/instance.php';

const PRESTASHOP_KEYS = ['secret', 'cookie_key', 'cookie_iv', 'new_cookie_key'];

function prestashop_key(string $name): string
{
    switch ($name) {
        case 'cookie_iv':
            return substr(instance_key($name), 0, 32);
        case 'new_cookie_key':
            // The form of a key of defuse/php-encryption: version, 32 bytes, checksum of both, in hexadecimal.
            $key = "\xDE\xF0\x00\x00" . hash('sha256', instance_key($name), true);
            return bin2hex($key . hash('sha256', $key, true));
        default:
            return instance_key($name);
    }
}
