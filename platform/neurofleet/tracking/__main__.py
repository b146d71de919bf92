from neurofleet.tracking.child import main

main()
