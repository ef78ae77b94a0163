<?php
// What this PrestaShop would generate next, each under its name, as JSON. Run by php-fpm and by the command line.
$_SERVER += ['HTTP_HOST' => INSTANCE['host'], 'REQUEST_URI' => '/', 'REQUEST_METHOD' => 'GET', 'SERVER_PROTOCOL' => 'HTTP/1.1',
    'SERVER_NAME' => INSTANCE['host'], 'REMOTE_ADDR' => '127.0.0.1', 'SCRIPT_NAME' => '/index.php', 'SERVER_PORT' => '80'];
// First of all, before PrestaShop draws from them.
$next = require 'next-common.php';
require '/var/www/prestashop/config/config.inc.php';

$admin = new Employee(1);
$customer = new Customer(2);
$session = new EmployeeSession();
$session->setUserId(1);
$session->setToken(sha1(time() . uniqid()));
$next += [
    'passwdGen' => Tools::passwdGen(24, 'RANDOM'),
    'getBytes' => bin2hex(Tools::getBytes(16)),
    'generateUID of a form' => bin2hex((new Symfony\Component\Security\Csrf\TokenGenerator\UriSafeTokenGenerator())->generateToken()),
    'reset token of an employee' => (function () use ($admin) { $admin->stampResetPasswordToken(); return $admin->reset_password_token; })(),
    'reset token of a customer' => (function () use ($customer) { $customer->stampResetPasswordToken(); return $customer->reset_password_token; })(),
    'PhpEncryption' => PhpEncryption::createNewRandomKey(),
    'session token' => $session->getToken(),
    'Hashing' => (new PrestaShop\PrestaShop\Core\Crypto\Hashing())->hash('a password'),
    'generateReference' => Order::generateReference(),
];
// Nothing random in it, but the clone's keys: the same at each call.
$keys = [
    'cookie_key' => _COOKIE_KEY_, 'cookie_iv' => _COOKIE_IV_, 'new_cookie_key' => _NEW_COOKIE_KEY_,
    'secret' => (require '/var/www/prestashop/app/config/parameters.php')['parameters']['secret'],
    'getAdminToken' => Tools::getAdminToken('AdminDashboard'),
    'getToken' => Tools::getToken(false),
    'NW_SALT' => Configuration::get('NW_SALT'),
    'hash of the admin' => $admin->passwd,
    'hash of the customer' => $customer->passwd,
    'key of the customer' => $customer->secure_key,
    'key of the anonymous customer' => (new Customer(1))->secure_key,
    'api key' => file_get_contents('/etc/golden/api-private.pem'),
];
header('Content-Type: application/json');
echo json_encode(['next' => $next, 'keys' => $keys]);
