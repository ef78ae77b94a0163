<?php
// What makes this clone different from every other one: its address, one secret and, on a shared database server, its
// database, all in /etc/golden/instance.ini.
// Loaded before every PHP script (auto_prepend_file); the ini file is read each time, so no opcode cache holds a value.

(function () {
    $instance = parse_ini_file('/etc/golden/instance.ini', false, INI_SCANNER_RAW);
    // With the port, if there is one.
    $instance['host'] = substr(strstr($instance['url'], '//'), 2);
    define('INSTANCE', $instance);
})();

/** A key of 64 hexadecimal characters for one use; nobody can tell the key of one use from that of another. */
function instance_key(string $use): string
{
    return hash_hmac('sha256', $use, INSTANCE['secret']);
}
