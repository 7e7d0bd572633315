/** With real packets: the pod's address answers from the VM, for each way in which CNI plugins leave a pod. */
import {createHash} from 'node:crypto';
import test from 'ava';
import {pattern} from './pattern.ts';
import {cnis, podAddress, NetworkTestbed} from './testbed.ts';

const signal = (): AbortSignal => AbortSignal.timeout(100_000);
const size = 10_000_000;
const checksum = createHash('sha256').update(pattern(size)).digest('hex');

for (const cni of cnis) {
	test(`${cni}: the pod's address is the VM's, both ways, and 10 MB arrive`, async t => {
		await using testbed = await NetworkTestbed.create();
		await using networks = testbed.networks();
		const pod = await testbed.addPod(cni, 5);
		await testbed.addPod(cni, 9, 'client');
		const vm = await testbed.addVm(5);
		await networks.check(signal());
		const network = await networks.reserve('sandbox', pod, signal());
		const podns = await testbed.configureVm(5, network);
		await networks.attach(network, vm, signal());

		await using inVm = await testbed.listen(podns);
		await using outside = await testbed.listen('client');
		t.is(
			await testbed.ask('client', podAddress(cni, 5), 'whoami'),
			`${podAddress(cni, 9)}\n`,
			'the VM sees the client',
		);
		t.is(await testbed.ask(podns, podAddress(cni, 9), 'whoami'), `${podAddress(cni, 5)}\n`, 'the pod reaches out');
		t.true(
			(
				await testbed.sh(
					`printf 'download ${size}\\n' | nc -w 60 ${podAddress(cni, 5)} 8080 | sha256sum`,
					'client',
				)
			).startsWith(checksum),
		);
		t.is(
			await testbed.sh(
				`printf 'download ${size}\\n' | nc -w 60 ${podAddress(cni, 9)} 8080 | nc -N -w 60 ${podAddress(cni, 9)} 8080`,
				podns,
			),
			`${size} ${checksum}\n`,
		);
		t.truthy(inVm);
		t.truthy(outside);
	});
}

test("two concurrent pods do not receive each other's packets", async t => {
	await using testbed = await NetworkTestbed.create();
	await using networks = testbed.networks();
	await testbed.addPod('bridge', 9, 'client');
	const peers = new AsyncDisposableStack();
	await using _ = peers;
	const pods = await Promise.all(
		[2, 3].map(async index => {
			const [pod, vm] = await Promise.all([testbed.addPod('bridge', index), testbed.addVm(index)]);
			const network = await networks.reserve(`sandbox-${index}`, pod, signal());
			const podns = await testbed.configureVm(index, network);
			await networks.attach(network, vm, signal());
			peers.use(await testbed.listen(podns));
			return {index, network, podns};
		}),
	);
	t.is(new Set(pods.map(({network}) => network.vxlanId)).size, 2);
	// Each VM is asked by the other: it would see an address of its own if the tunnels were mixed up.
	t.is(await testbed.ask('podns-2', podAddress('bridge', 3), 'whoami'), `${podAddress('bridge', 2)}\n`);
	t.is(await testbed.ask('podns-3', podAddress('bridge', 2), 'whoami'), `${podAddress('bridge', 3)}\n`);

	const [first, second] = pods;
	await networks.release(first?.network ?? t.fail(), signal());
	await t.throwsAsync(testbed.ask('client', podAddress('bridge', 2), 'whoami'), undefined, 'released');
	t.is(
		await testbed.ask('client', podAddress('bridge', 3), 'whoami'),
		`${podAddress('bridge', 9)}\n`,
		'the other is not touched',
	);
	t.truthy(second);
});

test("the VM's MTU leaves room for the tunnel", async t => {
	await using testbed = await NetworkTestbed.create();
	await testbed.sh('ip link set virbr0 mtu 9000');
	await using roomy = testbed.networks();
	const pod = await testbed.addPod('bridge', 2);
	t.is((await roomy.reserve('sandbox', pod, signal())).mtu, 1500);
	await testbed.sh('ip link set virbr0 mtu 1400');
	await using narrow = testbed.networks();
	t.is((await narrow.reserve('sandbox', pod, signal())).mtu, 1350);
});

test('without the route that the kernel made for the subnet, a VM could not add the route to its gateway', async t => {
	await using testbed = await NetworkTestbed.create();
	await using networks = testbed.networks();
	const network = await networks.reserve('sandbox', await testbed.addPod('bridge', 5), signal());
	await Promise.all([5, 6, 7].map(async index => testbed.addVm(index)));
	await t.throwsAsync(
		testbed.configureVm(5, {...network, routes: network.routes.filter(({protocol}) => protocol !== 'kernel')}),
		{message: /gateway|unreachable/v},
	);
	await t.notThrowsAsync(testbed.configureVm(6, network));
	await t.throwsAsync(
		testbed.configureVm(7, {...network, routes: [...network.routes, ...network.routes]}),
		{message: /File exists/v},
		"as the VM's forwarder does",
	);
});
