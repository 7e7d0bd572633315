import {execFile} from 'node:child_process';
import {chmod, chown, mkdir, readdir, writeFile} from 'node:fs/promises';
import {promisify} from 'node:util';
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

/** @param before run in a mount namespace of its own @returns the error of the module's function */
async function errorOf(expression: string, directory: string, before = 'true', drop = ''): Promise<string> {
	const [file, probe] = ['identity', 'identity-probe'].map(name =>
		JSON.stringify(new URL(`../../src/relay/${name}.ts`, import.meta.url).href),
	);
	const program = `import {openIdentity} from ${file}; import {observeIdentity} from ${probe};
		import {silentLogger} from ${JSON.stringify(new URL('../../src/core/log.ts', import.meta.url).href)};
		const [directory] = process.argv.slice(1);
		await (${expression}).catch(error => process.stdout.write(error.message));`;
	const {stdout} = await promisify(execFile)('unshare', [
		'--mount',
		'sh',
		'-euc',
		`${before}; exec setpriv --bounding-set=${drop} --inh-caps=${drop} "$0" --input-type=module -e "$1" "$2"`,
		process.execPath,
		program,
		directory,
	]);
	return stdout;
}

test('keys that this process may not read are reported with mode, owner and user', async t => {
	const directory = await directoryOf(t);
	const drop = '-dac_override,-dac_read_search';
	for (const name of ['identity.json', 'key.pem']) {
		await writeFile(`${directory}/${name}`, '');
		await chown(`${directory}/${name}`, 12_345, 12_345);
		await chmod(`${directory}/${name}`, 0o600);
	}

	const access = 'mode "0600", owner "12345:12345", user "0:0"';
	t.true(
		(await errorOf('observeIdentity(directory, undefined, new Date())', directory, 'true', drop)).startsWith(
			`Could not read the keys for the connections to VMs: permission denied (path "${directory}/identity.json", ${access}). Give user 0 access`,
		),
	);
	const files = '{caCert: `${directory}/key.pem`, cert: `${directory}/key.pem`, key: `${directory}/key.pem`}';
	t.true(
		(await errorOf(`observeIdentity(directory, ${files}, new Date())`, directory, 'true', drop)).startsWith(
			`The file of CACERT_FILE cannot be read: permission denied (CACERT_FILE "${directory}/key.pem", ${access}). Give user 0 access`,
		),
	);
});

test('on a full file system, the error begins with: no space left on device', async t => {
	const directory = await directoryOf(t);
	await mkdir(`${directory}/full`);
	const full = `mount -t tmpfs -o size=4k tmpfs ${directory}/full; head -c 4096 /dev/zero >${directory}/full/file`;
	t.regex(
		await errorOf('openIdentity({directory, log: silentLogger})', `${directory}/full`, full, '-kill'),
		/^Could not store the keys for the connections to VMs: no space left on device .*Free space/,
	);
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
