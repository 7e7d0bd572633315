/**
 * Preloaded into a daemon with a wrong clock: shifts the time in JavaScript by CLOCK_OFFSET_MS. OpenSSL still uses the
 * system clock, so TLS handshakes accept certificates that are not valid yet according to the daemon. This does not
 * test the behaviour of VMs with such certificates.
 */
const offsetMs = Number(process.env['CLOCK_OFFSET_MS']);
const now = (): number => Math.round(realDate.now() + offsetMs);
const realDate = Date;
globalThis.Date = new Proxy(realDate, {
	construct: (target, given, newTarget) =>
		Reflect.construct(target, given.length === 0 ? [now()] : given, newTarget) as Date,
	get: (target, key): unknown => (key === 'now' ? now : Reflect.get(target, key)),
});
