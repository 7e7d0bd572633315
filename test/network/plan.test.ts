/** Golden: test/fixtures/network/*.jsonl were printed by ip 6.1 in namespaces made like those that CNI plugins make. */
import {readFile} from 'node:fs/promises';
import test from 'ava';
import {AdaptorError} from '../../src/core/errors.ts';
import {parseInspection, parseLinks, parseRouteAndLinks, type Inspection} from '../../src/network/inspection.ts';
import {
	isReusable,
	planPodNetwork,
	workerAddress,
	type PlanOptions,
	type PodNetworkPlan,
} from '../../src/network/plan.ts';

const recorded = async (name: string): Promise<Inspection> =>
	parseInspection(await readFile(new URL(`../fixtures/network/${name}.jsonl`, import.meta.url), 'utf8'));
const plan = async (name: string, more: Partial<PlanOptions> = {}): Promise<PodNetworkPlan> =>
	planPodNetwork(await recorded(name), {
		netnsPath: '/run/netns/pod',
		worker: {prefix: '192.168.122.10/24', mtu: 1500},
		vxlanPort: 9000,
		podSubnetCidrs: [],
		externalNetViaPodVm: false,
		...more,
	});

test('bridge: the complete object for the VM', async t => {
	t.deepEqual(await plan('bridge'), {
		warnings: [],
		network: {
			netnsPath: '/run/netns/pod',
			podIp: '10.244.0.5/24',
			podHwAddr: '9a:1f:c5:2d:c0:8f',
			interface: 'eth0',
			workerNodeIp: '192.168.122.10/24',
			tunnelType: 'vxlan',
			routes: [
				{dst: '10.244.0.0/24', gw: '', dev: 'eth0', protocol: 'kernel', scope: 'link'},
				{dst: '0.0.0.0/0', gw: '10.244.0.1', dev: 'eth0', protocol: 'boot'},
			],
			neighbors: [],
			mtu: 1450,
			vxlanPort: 9000,
			dedicated: false,
			externalNetViaPodVm: false,
		},
	});
});

test('calico: the gateway that answers to no ARP comes with its MAC', async t => {
	const {network, warnings} = await plan('calico');
	t.deepEqual(warnings, []);
	t.is(network.podIp, '10.1.2.5/32');
	t.deepEqual(network.routes, [
		{dst: '169.254.1.1/32', gw: '', dev: 'eth0', protocol: 'boot', scope: 'link'},
		{dst: '0.0.0.0/0', gw: '169.254.1.1', dev: 'eth0', protocol: 'boot'},
	]);
	t.deepEqual(network.neighbors, [{ip: '169.254.1.1', hwAddr: 'ee:ee:ee:ee:ee:ee', dev: 'eth0', state: 'permanent'}]);
});

test('ptp: routes without gateway come first', async t => {
	const {network} = await plan('ptp');
	t.is(network.podIp, '10.22.0.5/24');
	t.deepEqual(
		network.routes.map(({dst, gw}) => [dst, gw]),
		[
			['10.22.0.1/32', ''],
			['0.0.0.0/0', '10.22.0.1'],
			['10.22.0.0/24', '10.22.0.1'],
		],
	);
});

test('an onlink gateway gets its own host route', async t => {
	const {network, warnings} = await plan('onlink');
	t.deepEqual(warnings, []);
	t.deepEqual(network.routes, [
		{dst: '169.254.23.0/32', gw: '', dev: 'eth0', protocol: 'static', scope: 'link'},
		{dst: '0.0.0.0/0', gw: '169.254.23.0', dev: 'eth0', protocol: 'boot'},
	]);
});

test('several interfaces, addresses and families: the VM gets the first of each, and the log says so', async t => {
	const {network, warnings} = await plan('multus');
	t.is(network.podIp, '10.244.0.5/24');
	t.deepEqual([...new Set(network.routes.map(({dev}) => dev))], ['eth0']);
	t.deepEqual(network.neighbors, [{ip: '10.244.0.1', hwAddr: 'ee:ee:ee:ee:ee:03', dev: 'eth0', state: 'permanent'}]);
	t.deepEqual(warnings, [
		'the pod VM only gets eth0, not net1',
		'the pod VM only gets the first IPv4 address of eth0',
		'the pod VM does not get the IPv6 addresses of eth0',
	]);
});

test('routes that the VM cannot add are not sent: other types, protocols, gateways and worse metrics', async t => {
	const {network, warnings} = await plan('routes');
	t.deepEqual(
		network.routes.map(({dst, gw, protocol}) => [dst, gw, protocol]),
		[
			['10.244.0.0/24', '', 'kernel'],
			['10.5.0.1/32', '10.244.0.9', 'dhcp'],
			['0.0.0.0/0', '10.244.0.1', 'boot'],
		],
	);
	t.deepEqual(warnings, ['the pod VM does not support all routes of the pod']);
});

test('a namespace without IPv4 is refused, and the message says why', async t => {
	for (const name of ['empty', 'v6']) {
		const error = await t.throwsAsync<AdaptorError>(plan(name), {instanceOf: AdaptorError});
		t.is(error.code, 'failed-precondition');
		t.regex(error.message, /no interface with an IPv4 address.*IPv6-only/v);
	}
});

test('several interfaces without a default route are refused; a single interface is accepted', async t => {
	const inspection = await recorded('multus');
	const options: PlanOptions = {
		netnsPath: '/n',
		worker: {prefix: '192.0.2.1/24', mtu: 1500},
		vxlanPort: 4789,
		podSubnetCidrs: [],
		externalNetViaPodVm: false,
	};
	t.throws(() => planPodNetwork({...inspection, routes: []}, options), {
		message: /several interfaces and no default route/v,
	});
	const alone = {...inspection, routes: [], links: inspection.links.filter(({name}) => name !== 'net1')};
	t.is(planPodNetwork(alone, options).network.interface, 'eth0');
});

test('an interface name that a script could misread is refused', async t => {
	const inspection = await recorded('bridge');
	const links = inspection.links.map(link => (link.name === 'eth0' ? {...link, name: 'eth"0'} : link));
	const routes = inspection.routes.map(route => ({...route, dev: 'eth"0'}));
	t.throws(
		() =>
			planPodNetwork(
				{...inspection, links, routes},
				{
					netnsPath: '/n',
					worker: {prefix: '192.0.2.1/24', mtu: 1500},
					vxlanPort: 4789,
					podSubnetCidrs: [],
					externalNetViaPodVm: false,
				},
			),
		{message: /unusual name/v},
	);
});

test('each subnet of the cluster becomes a route through the gateway; a flag decides on external traffic', async t => {
	const {network} = await plan('bridge', {
		podSubnetCidrs: ['10.128.0.7/14', '172.30.0.0/16', '10.128.0.0/14', '10.244.0.0/24'],
		externalNetViaPodVm: true,
	});
	t.deepEqual(network.routes.slice(2), [
		{dst: '10.128.0.0/14', gw: '10.244.0.1', dev: 'eth0'},
		{dst: '172.30.0.0/16', gw: '10.244.0.1', dev: 'eth0'},
	]);
	t.true(network.externalNetViaPodVm);
});

test("the MTU is the pod's, or what the tunnel leaves of the node's", async t => {
	for (const [mtu, expected] of [
		[9000, 1500],
		[1550, 1500],
		[1549, 1499],
		[1500, 1450],
	] as const) {
		t.is((await plan('bridge', {worker: {prefix: '192.0.2.1/24', mtu}})).network.mtu, expected);
	}
});

test('output that is not from ip is an error, not a guess', t => {
	for (const output of ['', 'Object "addr" is unknown\n', '[]\n[]\n', '[]\n[]\n{}\n', '[]\n[]\n[]\n[]\n']) {
		t.throws(() => parseInspection(output), {instanceOf: AdaptorError}, JSON.stringify(output));
	}

	t.deepEqual(parseInspection('[ ]\n[{},{}]\n[ ]\n'), {links: [], routes: [], neighbours: []}, 'iproute2 5');
});

const nodeLinks = parseLinks(
	JSON.stringify([
		{
			ifname: 'lo',
			flags: ['LOOPBACK'],
			mtu: 65_536,
			addr_info: [{family: 'inet', local: '127.0.0.1', prefixlen: 8, scope: 'host'}],
		},
		{
			ifname: 'enc1',
			flags: [],
			mtu: 1500,
			addr_info: [{family: 'inet', local: '10.0.0.4', prefixlen: 24, scope: 'global'}],
		},
		{
			ifname: 'enc2',
			flags: [],
			mtu: 9000,
			addr_info: [
				{family: 'inet', local: '192.168.122.9', prefixlen: 24, scope: 'global'},
				{family: 'inet', local: '192.168.122.10', prefixlen: 24, scope: 'global', secondary: true},
			],
		},
		{ifname: 'enc3', flags: [], mtu: 1500, addr_info: []},
	]),
);

test("the worker's address is the one that the kernel would send from, with its own interface's MTU", t => {
	const {route} = parseRouteAndLinks(
		'[{"type":"unicast","dst":"192.168.122.1","dev":"enc2","prefsrc":"192.168.122.10"}]\n[]\n',
	);
	t.deepEqual(workerAddress(nodeLinks, {route}), {prefix: '192.168.122.10/24', mtu: 9000});
	const local = parseRouteAndLinks('[{"type":"local","dst":"10.0.0.4","dev":"lo","prefsrc":"10.0.0.4"}]\n[]\n').route;
	t.deepEqual(workerAddress(nodeLinks, {route: local}), {prefix: '10.0.0.4/24', mtu: 1500}, 'VMs on this very node');
	t.throws(() => workerAddress(nodeLinks, {route: {...route, source: '198.51.100.1'}}), {
		message: /no address towards the network/v,
	});
});

test('HOST_INTERFACE decides instead, and must exist and have an address', t => {
	t.deepEqual(workerAddress(nodeLinks, {hostInterface: 'enc2'}), {prefix: '192.168.122.9/24', mtu: 9000});
	t.throws(() => workerAddress(nodeLinks, {hostInterface: 'eth9'}), {message: /does not exist.*enc1, enc2, enc3/v});
	t.throws(() => workerAddress(nodeLinks, {hostInterface: 'enc3'}), {message: /has no IPv4 address/v});
});

test('a tunnel is reused only if its port is right, and never if it learns addresses or serves all VNIs', t => {
	const ours = {vni: 555_000, port: 4789, learning: false, external: false};
	t.true(isReusable(ours, 4789));
	t.false(isReusable(ours, 9000));
	t.false(isReusable({...ours, learning: true}, 4789));
	t.false(isReusable({...ours, external: true}, 4789));
});
