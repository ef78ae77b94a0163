<?php
// PrestaShop's part of one-click login: signs the administrator in as the back office's login page does
// (AdminLoginController), without its form.

require '/golden/one-click.php';
one_click_check('/admin-demo/');
$module = one_click_module();
const _PS_ADMIN_DIR_ = '/var/www/prestashop/admin-demo';
const PS_ADMIN_DIR = _PS_ADMIN_DIR_;
require '/var/www/prestashop/config/config.inc.php';

$employee = new Employee(1);
if (!Validate::isLoadedObject($employee) || !$employee->active) {
    one_click_refuse('/admin-demo/');
}
$employee->remote_addr = (int) ip2long(Tools::getRemoteAddr());
$context = Context::getContext();
$context->employee = $employee;
$cookie = $context->cookie;
$cookie->id_employee = $employee->id;
$cookie->email = $employee->email;
$cookie->profile = $employee->id_profile;
$cookie->passwd = $employee->passwd;
$cookie->remote_addr = $employee->remote_addr;
$cookie->registerSession(new EmployeeSession());
$cookie->last_activity = time();
$cookie->write();
if ($module === null || !Module::isInstalled($module)) {
    one_click_go('/admin-demo/');
}
$query = ['controller' => 'AdminModules', 'configure' => $module, 'token' => Tools::getAdminTokenLite('AdminModules', $context)];
one_click_go('/admin-demo/index.php?' . http_build_query($query));
