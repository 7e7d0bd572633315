import {inspect} from 'node:util';
import test from 'ava';
import {Secret} from '../../src/core/log.ts';
import {guestFiles} from '../../src/sandbox/guest-files.ts';
import type {PodNetwork} from '../../src/sandbox/ports.ts';

const network: PodNetwork = {
	netnsPath: '/run/netns/pod',
	podIp: '10.0.0.5/24',
	podHwAddr: '0a:58:0a:00:00:05',
	interface: 'eth0',
	workerNodeIp: '192.168.122.10/24',
	tunnelType: 'vxlan',
	routes: [
		{dst: '', gw: '10.0.0.1', dev: 'eth0', protocol: 'boot'},
		{dst: '10.0.0.0/24', gw: '', dev: 'eth0', protocol: 'kernel', scope: 'link'},
	],
	neighbors: [{ip: '169.254.1.1', hwAddr: 'ee:ee:ee:ee:ee:ee', dev: 'eth0', state: 'permanent'}],
	mtu: 1450,
	index: 0,
	vxlanPort: 4789,
	vxlanId: 555_001,
	dedicated: false,
	externalNetViaPodVm: false,
};
const tls = {serverKey: new Secret('KEY'), serverCert: 'CERT', clientCa: 'CA', minVersion: 'VersionTLS13'} as const;

test('both generations of the forwarder get the same configuration, under the names that they read', t => {
	const files = guestFiles({pod: {name: 'web', namespace: 'shop', uid: 'u'}, network, tls});
	t.deepEqual(
		files.map(({path}) => path),
		['/run/peerpod/apf.json', '/run/peerpod/daemon.json'],
	);
	const [apf, daemon] = files.map(({content}) => JSON.parse(content.reveal()) as unknown);
	t.deepEqual(apf, daemon);
	t.deepEqual(apf, {
		'pod-network': {
			podip: '10.0.0.5/24',
			'pod-hw-addr': '0a:58:0a:00:00:05',
			interface: 'eth0',
			'worker-node-ip': '192.168.122.10/24',
			'tunnel-type': 'vxlan',
			routes: [
				{dst: '', gw: '10.0.0.1', dev: 'eth0', protocol: 'boot'},
				{dst: '10.0.0.0/24', gw: '', dev: 'eth0', protocol: 'kernel', scope: 'link'},
			],
			neighbors: [{ip: '169.254.1.1', 'hw-addr': 'ee:ee:ee:ee:ee:ee', dev: 'eth0', state: 'permanent'}],
			mtu: 1450,
			index: 0,
			'vxlan-port': 4789,
			'vxlan-id': 555_001,
			dedicated: false,
			'external-net-via-pod-vm': false,
		},
		'pod-namespace': 'shop',
		'pod-name': 'web',
		'tls-server-key': 'KEY',
		'tls-server-cert': 'CERT',
		'tls-client-ca': 'CA',
		'tls-min-version': 'VersionTLS13',
	});
});

test('with a CA of the administrator, the unnecessary fields are omitted', t => {
	const [file] = guestFiles({pod: {name: 'web', namespace: 'shop'}, network, tls: {}});
	t.false(/tls-/.test(file?.content.reveal() ?? 'tls-'));
});

test("initdata and the scratch space's marker are there when they are asked for, and only then", t => {
	const others = guestFiles({
		pod: {name: 'web', namespace: 'shop'},
		network,
		tls,
		initdata: {content: 'H4sI', digest: 'sha256:00'},
		hasScratchSpace: true,
	}).slice(2);
	t.deepEqual(
		others.map(({path, content}) => [path, content.reveal()]),
		[
			['/run/peerpod/initdata', 'H4sI'],
			['/run/peerpod/scratch-space.marker', ''],
		],
	);
	t.is(guestFiles({pod: {name: 'web', namespace: 'shop'}, network, tls, hasScratchSpace: false}).length, 2);
});

test('a file never prints its content', t => {
	const [file] = guestFiles({pod: {name: 'web', namespace: 'shop'}, network, tls});
	t.notRegex(inspect(file, {depth: 9, showHidden: true}) + JSON.stringify(file) + String(file?.content), /KEY/);
});
