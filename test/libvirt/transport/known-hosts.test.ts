import {mkdtemp, readFile, rm, writeFile} from 'node:fs/promises';
import {tmpdir} from 'node:os';
import test from 'ava';
import fc from 'fast-check';
import {
	fingerprint,
	keyTypeOf,
	knownKeyTypes,
	parseKnownHosts,
	verifyHostKey,
} from '../../../src/libvirt/transport/known-hosts.ts';
import {run} from '../../support/sshd.ts';

function key(type: string, seed: string): Buffer {
	const name = Buffer.from(type);
	const length = Buffer.alloc(4);
	length.writeUInt32BE(name.length);
	return Buffer.concat([length, name, Buffer.from(seed)]);
}

const ed = key('ssh-ed25519', 'one');
const otherEd = key('ssh-ed25519', 'two');
const rsa = key('ssh-rsa', 'three');
const edLine = `ssh-ed25519 ${ed.toString('base64')}`;
const rsaLine = `ssh-rsa ${rsa.toString('base64')}`;

function verdict(text: string, host = 'kvm', port = 22, offered = ed): string {
	const {verdict: name, lines} = verifyHostKey(parseKnownHosts(text), host, port, offered);
	return [name, ...lines.map(({line}) => line)].join(' ');
}

test('a key is trusted for the hosts of its line, whatever their case', t => {
	t.is(verdict(`# comment\n\nother,KVM,192.0.2.1 ${edLine} root@kvm\n`), 'trusted 3');
	t.is(verdict(`kvm ${edLine}`, 'Kvm'), 'trusted 1');
	t.is(verdict(`kvm\t${edLine}\r\n`), 'trusted 1');
	t.is(verdict(`kvm2 ${edLine}`), 'unknown');
	t.is(verdict('', 'kvm'), 'unknown');
});

test('a port other than 22 is part of the name, and a key known at 22 is good there too', t => {
	t.is(verdict(`[kvm]:2222 ${edLine}`, 'kvm', 2222), 'trusted 1');
	t.is(verdict(`[kvm]:2222 ${edLine}`, 'kvm', 22), 'unknown');
	t.is(verdict(`kvm ${edLine}`, 'kvm', 2222), 'trusted 1');
	t.is(verdict(`kvm ${edLine}`, 'kvm', 2222, otherEd), 'unknown');
	t.is(
		verdict(`[kvm]:2222 ${edLine}\nkvm ssh-ed25519 ${otherEd.toString('base64')}`, 'kvm', 2222, otherEd),
		'changed 1',
	);
	t.is(verdict(`[2001:db8::1]:2222 ${edLine}`, '2001:DB8::1', 2222), 'trusted 1');
});

test('patterns match as in OpenSSH, and a negated one excludes', t => {
	t.is(verdict(`*.example,!bad.example ${edLine}`, 'good.example'), 'trusted 1');
	t.is(verdict(`*.example,!bad.example ${edLine}`, 'bad.example'), 'unknown');
	t.is(verdict(`!bad.example ${edLine}`, 'good.example'), 'unknown');
	t.is(verdict(`k?m ${edLine}`), 'trusted 1');
	t.is(verdict(`k?m ${edLine}`, 'km'), 'unknown');
	t.is(verdict(`* ${edLine}`, 'kvm', 2222), 'trusted 1');
	t.is(verdict(`k.m ${edLine}`), 'unknown');
});

test('many stars cost no exponential time', t => {
	t.is(verdict(`${'*a'.repeat(2000)} ${edLine}`, `${'a'.repeat(2000)}b`), 'unknown');
});

test('another key than the known one is a change, of the same type or not', t => {
	t.is(verdict(`kvm ${edLine}`, 'kvm', 22, otherEd), 'changed 1');
	t.is(verdict(`kvm ${rsaLine}`), 'changed 1');
	t.is(verdict(`kvm ${rsaLine}\nkvm ${edLine}`), 'trusted 2');
});

test('a revoked key is never trusted, in whatever order the lines stand', t => {
	t.is(verdict(`kvm ${edLine}\n@revoked * ${edLine}`), 'revoked 2');
	t.is(verdict(`@revoked kvm ${rsaLine}\nkvm ${edLine}`), 'trusted 2');
	t.is(verdict(`@revoked other ${edLine}\nkvm ${edLine}`), 'trusted 2');
	t.is(verdict(`@revoked kvm ${edLine}`, 'kvm', 2222), 'revoked 1');
});

test('a certificate authority does not make its own key a host key', t => {
	t.is(verdict(`@cert-authority * ${edLine}`), 'unknown 1');
	t.deepEqual(knownKeyTypes(parseKnownHosts(`@cert-authority * ${edLine}`), 'kvm', 22), []);
});

test('malformed lines are set aside with a reason and do not hide the others', t => {
	const known = parseKnownHosts(
		[
			'kvm',
			'kvm ssh-ed25519',
			'kvm ssh-ed25519 !!!',
			`kvm ssh-rsa ${ed.toString('base64')}`,
			`@magic kvm ${edLine}`,
			`|1|nonsense ${edLine}`,
			`|2|a|b ${edLine}`,
			'kvm ssh-rsa 2048 17 1234',
			`kvm ${edLine}`,
		].join('\n'),
	);
	t.deepEqual(
		known.malformed.map(({line}) => line),
		[1, 2, 3, 4, 5, 6, 7, 8],
	);
	t.true(known.malformed.every(({reason}) => reason.length > 0));
	t.is(verifyHostKey(known, 'kvm', 22, ed).verdict, 'trusted');
});

test('the types known for a host are those at its port, or else at port 22', t => {
	const known = parseKnownHosts(`kvm ${rsaLine}\n[kvm]:2222 ${edLine}`);
	t.deepEqual(knownKeyTypes(known, 'kvm', 2222), ['ssh-ed25519']);
	t.deepEqual(knownKeyTypes(known, 'kvm', 22), ['ssh-rsa']);
	t.deepEqual(knownKeyTypes(known, 'kvm', 2223), ['ssh-rsa']);
});

test('keys, hashed hosts and fingerprints are those of ssh-keygen', async t => {
	const directory = await mkdtemp(`${tmpdir()}/caat-known-hosts-`);
	t.teardown(async () => rm(directory, {recursive: true}));
	await run('ssh-keygen', ['-q', '-t', 'ecdsa', '-N', '', '-f', `${directory}/key`]);
	const [type = '', base64 = ''] = (await readFile(`${directory}/key.pub`, 'utf8')).split(' ');
	const blob = Buffer.from(base64, 'base64');
	await writeFile(`${directory}/known_hosts`, `kvm.example ${type} ${base64}\n[192.0.2.7]:2222 ${type} ${base64}\n`);
	await run('ssh-keygen', ['-H', '-f', `${directory}/known_hosts`]);
	const text = await readFile(`${directory}/known_hosts`, 'utf8');
	t.regex(text, /^\|1\|/);
	t.notRegex(text, /kvm|192/);
	t.is(verdict(text, 'KVM.example', 22, blob), 'trusted 1');
	t.is(verdict(text, '192.0.2.7', 2222, blob), 'trusted 2');
	t.is(verdict(text, '192.0.2.7', 22, blob), 'unknown');
	t.is(keyTypeOf(blob), type);
	t.is((await run('ssh-keygen', ['-lf', `${directory}/key.pub`])).stdout.split(' ')[1], fingerprint(blob));
});

test('arbitrary text and keys never throw', t => {
	const word = fc.constantFrom(
		'kvm',
		'*',
		'!kvm',
		',',
		' ',
		'\t',
		'\n',
		'@revoked',
		'@cert-authority',
		'|1|',
		'|',
		'ssh-ed25519',
		edLine,
		'AAAA',
		'=',
		'#',
		'[kvm]:22',
	);
	fc.assert(
		fc.property(
			fc.oneof(
				fc.string({unit: 'binary'}),
				fc.array(word).map(words => words.join('')),
			),
			fc.string(),
			fc.integer({min: 1, max: 65_535}),
			fc.uint8Array(),
			(text, host, port, bytes) => {
				const known = parseKnownHosts(text);
				verifyHostKey(known, host, port, Buffer.from(bytes));
				knownKeyTypes(known, host, port);
				keyTypeOf(Buffer.from(bytes));
			},
		),
		{numRuns: 2000},
	);
	t.pass();
});
