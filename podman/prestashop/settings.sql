-- What the demo shop has set differently from a fresh installation.

-- Mail off. The cookie is not bound to an address: behind a router that may change.
UPDATE ps_configuration SET value = '3' WHERE name = 'PS_MAIL_METHOD';
UPDATE ps_configuration SET value = '0' WHERE name IN ('PS_LOG_EMAILS', 'PS_COOKIE_CHECKIP');
-- All style sheets in one file, all scripts in another.
DELETE FROM ps_configuration WHERE name IN ('PS_CSS_THEME_CACHE', 'PS_JS_THEME_CACHE');
INSERT INTO ps_configuration (name, value, date_add, date_upd)
VALUES ('PS_CSS_THEME_CACHE', '1', NOW(), NOW()), ('PS_JS_THEME_CACHE', '1', NOW(), NOW());
-- Templates are compiled once, pages cached until something changes in the back office (PrestaShop's defaults, to be sure).
UPDATE ps_configuration SET value = '0' WHERE name = 'PS_SMARTY_FORCE_COMPILE';
UPDATE ps_configuration SET value = '1' WHERE name = 'PS_SMARTY_CACHE';
UPDATE ps_configuration SET value = 'everytime' WHERE name = 'PS_SMARTY_CLEAR_CACHE';
-- The orders of the sample customer carry an older key of his; each clone gives him a new one.
UPDATE ps_orders o JOIN ps_customer c USING (id_customer) SET o.secure_key = c.secure_key;
UPDATE ps_cart o JOIN ps_customer c USING (id_customer) SET o.secure_key = c.secure_key;
TRUNCATE ps_log;
