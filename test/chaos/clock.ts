/**
 * Preloaded into a daemon whose clock is to be wrong by CLOCK_OFFSET_MS: shifts what JavaScript takes for the time.
 * OpenSSL has the system's clock all the same, so a certificate that is not valid yet by the daemon's clock is accepted
 * in a TLS handshake: what VMs do meanwhile is not shown by this.
 */
const offsetMs = Number(process.env['CLOCK_OFFSET_MS']);
const now = (): number => Math.round(realDate.now() + offsetMs);
const realDate = Date;
globalThis.Date = new Proxy(realDate, {
	construct: (target, given, newTarget) =>
		Reflect.construct(target, given.length === 0 ? [now()] : given, newTarget) as Date,
	get: (target, key): unknown => (key === 'now' ? now : Reflect.get(target, key)),
});
