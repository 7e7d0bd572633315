/** With real packets: the pod's address answers from the VM, for each way in which CNI plugins leave a pod. */
import {createHash} from 'node:crypto';
import test from 'ava';
import {pattern} from './pattern.ts';
import {cnis, podAddress, World} from './world.ts';

const signal = (): AbortSignal => AbortSignal.timeout(100_000);
const size = 10_000_000;
const checksum = createHash('sha256').update(pattern(size)).digest('hex');

for (const cni of cnis) {
	test(`${cni}: the pod's address is the VM's, both ways, and 10 MB arrive`, async t => {
		await using world = await World.create();
		await using networks = world.networks();
		const pod = await world.addPod(cni, 5);
		await world.addPod(cni, 9, 'client');
		const vm = await world.addVm(5);
		await networks.check(signal());
		const network = await networks.reserve('sandbox', pod, signal());
		const podns = await world.configureVm(5, network);
		await networks.attach(network, vm, signal());

		await using inVm = await world.listen(podns);
		await using outside = await world.listen('client');
		t.is(
			await world.ask('client', podAddress(cni, 5), 'whoami'),
			`${podAddress(cni, 9)}\n`,
			'the VM sees the client',
		);
		t.is(await world.ask(podns, podAddress(cni, 9), 'whoami'), `${podAddress(cni, 5)}\n`, 'the pod reaches out');
		t.true(
			(
				await world.sh(
					`printf 'download ${size}\\n' | nc -w 60 ${podAddress(cni, 5)} 8080 | sha256sum`,
					'client',
				)
			).startsWith(checksum),
		);
		t.is(
			await world.sh(
				`printf 'download ${size}\\n' | nc -w 60 ${podAddress(cni, 9)} 8080 | nc -N -w 60 ${podAddress(cni, 9)} 8080`,
				podns,
			),
			`${size} ${checksum}\n`,
		);
		t.truthy(inVm);
		t.truthy(outside);
	});
}

test('two pods at once stay apart', async t => {
	await using world = await World.create();
	await using networks = world.networks();
	await world.addPod('bridge', 9, 'client');
	const peers = new AsyncDisposableStack();
	await using _ = peers;
	const pods = await Promise.all(
		[2, 3].map(async index => {
			const [pod, vm] = await Promise.all([world.addPod('bridge', index), world.addVm(index)]);
			const network = await networks.reserve(`sandbox-${index}`, pod, signal());
			const podns = await world.configureVm(index, network);
			await networks.attach(network, vm, signal());
			peers.use(await world.listen(podns));
			return {index, network, podns};
		}),
	);
	t.is(new Set(pods.map(({network}) => network.vxlanId)).size, 2);
	// Each VM is asked by the other: it would see an address of its own if the tunnels were mixed up.
	t.is(await world.ask('podns-2', podAddress('bridge', 3), 'whoami'), `${podAddress('bridge', 2)}\n`);
	t.is(await world.ask('podns-3', podAddress('bridge', 2), 'whoami'), `${podAddress('bridge', 3)}\n`);

	const [first, second] = pods;
	await networks.release(first?.network ?? t.fail(), signal());
	await t.throwsAsync(world.ask('client', podAddress('bridge', 2), 'whoami'), undefined, 'released');
	t.is(
		await world.ask('client', podAddress('bridge', 3), 'whoami'),
		`${podAddress('bridge', 9)}\n`,
		'the other is not touched',
	);
	t.truthy(second);
});

test("the VM's MTU leaves room for the tunnel", async t => {
	await using world = await World.create();
	await world.sh('ip link set virbr0 mtu 9000');
	await using roomy = world.networks();
	const pod = await world.addPod('bridge', 2);
	t.is((await roomy.reserve('sandbox', pod, signal())).mtu, 1500);
	await world.sh('ip link set virbr0 mtu 1400');
	await using narrow = world.networks();
	t.is((await narrow.reserve('sandbox', pod, signal())).mtu, 1350);
});

test('without the route that the kernel made for the subnet, a VM could not add the route to its gateway', async t => {
	await using world = await World.create();
	await using networks = world.networks();
	const network = await networks.reserve('sandbox', await world.addPod('bridge', 5), signal());
	await Promise.all([5, 6, 7].map(async index => world.addVm(index)));
	await t.throwsAsync(
		world.configureVm(5, {...network, routes: network.routes.filter(({protocol}) => protocol !== 'kernel')}),
		{message: /gateway|unreachable/v},
	);
	await t.notThrowsAsync(world.configureVm(6, network));
	await t.throwsAsync(
		world.configureVm(7, {...network, routes: [...network.routes, ...network.routes]}),
		{message: /File exists/v},
		"as the VM's forwarder does",
	);
});
