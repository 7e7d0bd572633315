import test, {type ExecutionContext} from 'ava';
import fc from 'fast-check';
import {AdaptorError} from '../../src/core/errors.ts';
import {parseLibvirtUri, socketPaths, type SshUri} from '../../src/libvirt/uri.ts';

const usual = ['/run/libvirt/virtqemud-sock', '/run/libvirt/libvirt-sock'];

function ssh(text: string): SshUri {
	const uri = parseLibvirtUri(text);
	if (uri.transport !== 'ssh') {
		throw new Error(`${text} is not ssh`);
	}

	return uri;
}

function refusal(t: ExecutionContext, text: string): AdaptorError {
	const error = t.throws(() => parseLibvirtUri(text), {instanceOf: AdaptorError});
	t.is(error.code, 'invalid-argument');
	t.truthy(error.remedy);
	return error;
}

test("a local URI goes to the usual sockets, the driver's own daemon first", t => {
	const uri = parseLibvirtUri('qemu:///system');
	t.like(uri, {transport: 'unix', driver: 'qemu', path: '/system', remoteUri: 'qemu:///system'});
	t.deepEqual(socketPaths(uri), usual);
	t.deepEqual(socketPaths(parseLibvirtUri('qemu:///system?mode=direct')), usual.slice(0, 1));
	t.deepEqual(socketPaths(parseLibvirtUri('qemu:///system?mode=legacy')), usual.slice(1));
});

test('the test driver has no daemon of its own', t => {
	const uri = parseLibvirtUri('test:///default');
	t.is(uri.remoteUri, 'test:///default');
	t.deepEqual(socketPaths(uri), usual.slice(1));
	t.is(parseLibvirtUri('test:///tmp/a%20node.xml').path, '/tmp/a node.xml');
	t.is(parseLibvirtUri('test+ssh://kvm/default').remoteUri, 'test:///default');
});

test('socket= replaces the usual sockets, percent-decoded, and + stays a plus', t => {
	t.deepEqual(socketPaths(parseLibvirtUri('qemu+unix:///system?socket=/tmp/a%26b+c')), ['/tmp/a&b+c']);
	t.is(parseLibvirtUri('qemu:///session?socket=/run/user/1000/libvirt/libvirt-sock').remoteUri, 'qemu:///session');
});

test("upstream's default is understood", t => {
	t.like(ssh('qemu+ssh://root@192.168.122.1/system?no_verify=1'), {
		user: 'root',
		host: '192.168.122.1',
		port: 22,
		hostKeys: 'ignore',
		remoteUri: 'qemu:///system',
		proxy: 'auto',
		netcat: 'nc',
	});
});

test('every ssh parameter arrives', t => {
	const uri = ssh(
		'qemu+ssh://me%40corp@[fe80::1%25eth0]:2222/system?keyfile=/k&known_hosts=/h;known_hosts_verify=auto&sshauth=privkey,password,agent&socket=/s&mode=legacy&netcat=ncat&proxy=netcat',
	);
	t.like(uri, {
		user: 'me@corp',
		host: 'fe80::1%eth0',
		port: 2222,
		keyfile: '/k',
		knownHosts: '/h',
		hostKeys: 'auto',
		sshauth: ['privkey', 'agent'],
		socket: '/s',
		mode: 'legacy',
		netcat: 'ncat',
		proxy: 'netcat',
	});
	t.true(Object.isFrozen(uri));
});

test('the other ssh transports of libvirt are treated as ssh', t => {
	t.is(ssh('qemu+libssh2://kvm/system').host, 'kvm');
	t.is(ssh('qemu+libssh://kvm/system').user, undefined);
});

test('host keys are verified unless no_verify is a number other than 0', t => {
	t.is(ssh('qemu+ssh://kvm/system').hostKeys, 'normal');
	t.is(ssh('qemu+ssh://kvm/system?no_verify=0').hostKeys, 'normal');
	t.is(ssh('qemu+ssh://kvm/system?known_hosts_verify=ignore').hostKeys, 'ignore');
	refusal(t, 'qemu+ssh://kvm/system?no_verify=yes');
	refusal(t, 'qemu+ssh://kvm/system?no_verify=1&known_hosts_verify=normal');
});

test('libvirt parameters without effect here cause a warning, except no_tty', t => {
	t.regex(
		parseLibvirtUri('qemu+ssh://kvm/system?command=/opt/ssh&no_tty=1').warnings.join(),
		/^The parameter command [^,]*$/,
	);
	t.regex(parseLibvirtUri('qemu:///system?keyfile=/k').warnings.join(), /keyfile/);
	t.deepEqual(parseLibvirtUri('qemu+ssh://kvm/system?keyfile=/k').warnings, []);
});

test('an unknown parameter is refused and the known ones are named', t => {
	const error = refusal(t, 'qemu+ssh://kvm/system?noverify=1');
	t.deepEqual(error.where, {parameter: 'noverify'});
	t.regex(error.message, /no_verify/);
});

test('a password is refused and never repeated', t => {
	for (const text of [
		'qemu+ssh://root:s3cret@kvm/system',
		'qemu+ssh://root:s3/cret@kvm/system',
		'qemu+ssh://:s3cret@kvm/system',
		'xen+tls://a:s3cret@[::1]:x/',
	]) {
		const error = refusal(t, text);
		t.regex(error.message, /password/);
		t.notRegex(error.message, /s3/);
	}
});

for (const [text, expected] of [
	['', /is malformed/],
	['qemu', /is malformed/],
	['xen:///system', /driver/],
	['qemu+tls://kvm/system', /Supported are ssh/],
	['qemu+tcp://kvm/system', /Supported are ssh/],
	['qemu+ext://kvm/system', /Supported are ssh/],
	['qemu://kvm/system', /no transport/],
	['qemu+ssh:///system', /no valid host/],
	['qemu+ssh://a b/system', /no valid host/],
	['qemu+ssh://kvm:70000/system', /port/],
	['qemu+ssh://kvm:x/system', /no valid host/],
	['qemu:///', /path/],
	['qemu:///session', /socket/],
	['qemu:///embed', /path/],
	['test:///', /path/],
	['qemu+ssh://kvm/system?keyfile=', /empty/],
	['qemu+ssh://kvm/system?keyfile=%zz', /percent/],
	['qemu+ssh://kvm/system?socket=%00', /null/],
	['qemu+ssh://kvm/system?mode=fast', /mode/],
	['qemu+ssh://kvm/system?sshauth=password', /without user interaction/],
	['qemu+ssh://kvm/system?sshauth=magic', /sshauth/],
	['qemu+ssh://kvm/system?proxy=native&netcat=ncat', /contradict/],
	['qemu+ssh://kvm/system?proxy=native&socket=/s', /contradict/],
	['qemu+ssh://kvm/system?__proto__=1', /unknown parameter/],
] as const) {
	test(`"${text}" is refused with what is wrong and what to do`, t => {
		t.regex(refusal(t, text).message, expected);
	});
}

test('arbitrary text is parsed or refused with an AdaptorError', t => {
	const piece = fc.constantFrom(
		'qemu',
		'test',
		'+',
		'ssh',
		'unix',
		'://',
		'/',
		'system',
		'?',
		'&',
		';',
		'=',
		'@',
		':',
		'[',
		']',
		'%',
		'%41',
		'#',
		'no_verify',
		'socket',
		'1',
		'\0',
		'é',
	);
	const text = fc.oneof(
		fc.string({unit: 'binary'}),
		fc.array(piece).map(pieces => pieces.join('')),
		fc.array(piece).map(pieces => `qemu+ssh://${pieces.join('')}`),
	);
	fc.assert(
		fc.property(text, candidate => {
			try {
				parseLibvirtUri(candidate);
			} catch (error) {
				if (!(error instanceof AdaptorError)) {
					throw error;
				}
			}
		}),
		{numRuns: 2000},
	);
	t.pass();
});

test('user, host, port and paths survive being written into a URI', t => {
	const word = fc
		.string({unit: 'grapheme', minLength: 1, maxLength: 20})
		.filter(value => !/[\p{Cc}\p{Cs}]/u.test(value));
	fc.assert(
		fc.property(
			word,
			fc.domain(),
			fc.integer({min: 1, max: 65_535}),
			word,
			word,
			(user, host, port, keyfile, socket) => {
				const uri = parseLibvirtUri(
					`qemu+ssh://${encodeURIComponent(user)}@${host}:${port}/system?keyfile=${encodeURIComponent(keyfile)}&socket=${encodeURIComponent(socket)}`,
				);
				return (
					uri.transport === 'ssh' &&
					uri.user === user &&
					uri.host === host &&
					uri.port === port &&
					uri.keyfile === keyfile &&
					uri.socket === socket
				);
			},
		),
	);
	t.pass();
});
