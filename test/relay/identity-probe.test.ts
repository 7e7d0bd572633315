import {readdir, writeFile} from 'node:fs/promises';
import test from 'ava';
import {silentLogger} from '../../src/core/log.ts';
import {makeCa, makeClientCertificate} from '../../src/relay/certificates.ts';
import {observeIdentity} from '../../src/relay/identity-probe.ts';
import {openIdentity} from '../../src/relay/identity.ts';
import {directoryOf} from '../support/directory.ts';

const now = new Date();
const dayMs = 86_400_000;

test('without a stored identity, the probe creates nothing', async t => {
	const directory = await directoryOf(t);
	t.deepEqual(await observeIdentity(`${directory}/tls`, undefined, now), {source: 'own', state: 'absent'});
	t.deepEqual(await readdir(directory), []);
});

test('the own identity is read in the same way as by the daemon', async t => {
	const directory = await directoryOf(t);
	await openIdentity({directory, log: silentLogger});
	const found = await observeIdentity(directory, undefined, now);
	t.like(found, {source: 'own', state: 'usable'});
	t.true(found.state === 'usable' && found.validFrom < now && found.validTo.getTime() > now.getTime() + 3000 * dayMs);
});

test('a damaged or expired identity is reported with the reason, and stays in place', async t => {
	const directory = await directoryOf(t);
	await openIdentity({directory, log: silentLogger});
	t.like(await observeIdentity(directory, undefined, new Date(now.getTime() + 3649 * dayMs)), {state: 'unusable'});
	await writeFile(`${directory}/identity.json`, '{');
	t.deepEqual(await observeIdentity(directory, undefined, now), {
		source: 'own',
		state: 'unusable',
		reason: 'it is damaged or was not written by this program',
	});
	t.deepEqual(await readdir(directory), ['identity.json']);
});

test('an identity that is not valid yet by a wrong clock is usable, and its start is reported', async t => {
	const directory = await directoryOf(t);
	await openIdentity({directory, log: silentLogger});
	const found = await observeIdentity(directory, undefined, new Date(now.getTime() - 3 * dayMs));
	t.true(found.state === 'usable' && found.validFrom.getTime() > now.getTime() - 3 * dayMs);
});

test('custom files are valid until the first one expires; files that do not match are an error', async t => {
	const directory = await directoryOf(t);
	const until = (days: number): {notBefore: Date; notAfter: Date} => ({
		notBefore: new Date(now.getTime() - dayMs),
		notAfter: new Date(now.getTime() + days * dayMs),
	});
	const [ca, client, other] = await Promise.all([
		makeCa('ca', until(100)),
		makeClientCertificate('client', until(10)),
		makeClientCertificate('client', until(10)),
	]);
	const files = {caCert: `${directory}/ca`, cert: `${directory}/cert`, key: `${directory}/key`};
	await Promise.all([
		writeFile(files.caCert, ca.cert),
		writeFile(files.cert, client.cert),
		writeFile(files.key, client.key.reveal()),
	]);
	const found = await observeIdentity('/nonexistent', files, now);
	t.true(
		found.state === 'usable' &&
			found.source === 'files' &&
			Math.abs(found.validTo.getTime() - now.getTime() - 10 * dayMs) < 2000,
	);
	await writeFile(files.key, other.key.reveal());
	await t.throwsAsync(observeIdentity('/nonexistent', files, now), {message: /do not match.*CERT_KEY/});
});
